"""vLLM attention over keys and values of 8 bits with a scale per token and head, by Fathom's kernel.

vLLM's own kernel for this cache reads rows of 132 bytes, which no aligned load fits, and is far slower than 16 bits.
Imported by vLLM's workers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills

from fathom.engines import int8_attention
from fathom.engines.vllm_worker import WeightReceiver


@dataclass
class Int8Metadata(TritonAttentionMetadata):
    """written: chains at the head of the batch that bring one token each. prompts: those after them."""

    written: int = 0
    prompts: int = 0


class Int8MetadataBuilder(TritonAttentionMetadataBuilder):
    """vLLM sorts a batch by the tokens that each chain brings, so those with one come first."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Int8Metadata:
        made = super().build(common_prefix_len, common_attn_metadata, fast_build)
        written, prompts, _, _ = split_decodes_and_prefills(common_attn_metadata)
        return Int8Metadata(**vars(made), written=written, prompts=prompts)


class Int8Attention(TritonAttentionImpl):
    """One layer. Raises ValueError for models whose attention the kernel doesn't know."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        windowed = self.sliding_window != (-1, -1)
        if windowed or self.logits_soft_cap or self.alibi_slopes is not None or self.sinks is not None:
            raise ValueError(
                "kv_cache_dtype int8_per_token_head knows plain causal attention only; fp8 knows this model"
            )

    def do_kv_cache_update(
        self, layer: torch.nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        int8_attention.store(key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Int8Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query, output: (tokens, heads, dim). kv_cache: as `int8_attention.store` takes it. No metadata: a trial of the memory."""
        if attn_metadata is None:
            return output.fill_(0)
        made, cached = attn_metadata, (kv_cache, attn_metadata.block_table, attn_metadata.seq_lens, self.scale)
        if made.written:
            int8_attention.attend(query, *cached, output, made.written)
        if made.prompts:
            starts, longest = made.query_start_loc, made.max_query_len
            int8_attention.attend_prompts(query, starts, longest, *cached, output, made.written)
        return output

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        return False


@register_backend(AttentionBackendEnum.CUSTOM)
class Int8Backend(AttentionBackend):
    """What vLLM asks before it builds the layers."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["int8_per_token_head"]
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Int8Attention]:
        return Int8Attention

    @staticmethod
    def get_builder_cls() -> type[Int8MetadataBuilder]:
        return Int8MetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int | MultipleOf]:
        return [int8_attention.PAGE]

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        return (num_blocks, 2, num_kv_heads, int8_attention.page_bytes(head_size))

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return [32, 64, 128, 256]


class WorkerExtension(WeightReceiver):
    """`worker_extension_cls` of an engine with this cache: by looking it up, vLLM's workers import, and register, the above."""
