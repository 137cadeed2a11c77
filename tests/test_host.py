import torch

from sgan import host


def test_the_processor_has_a_name_and_torch_agrees_on_its_instructions():
    assert host.processor()
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        assert host.multiplies_bfloat16()
