"""Sources: corpora, local files and generated problems, read into problems and recorded chains."""
