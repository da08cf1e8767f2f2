"""The shapes of published models by name: Stable Diffusion 1.5, 2, SDXL and its refiner, inpainting, x4 upscaling."""

from __future__ import annotations

from .config import AutoencoderConfig, TextEncoderConfig, UNetConfig

SD15_AUTOENCODER = AutoencoderConfig()
SD15_UNET = UNetConfig()
SD15_TEXT_ENCODER = TextEncoderConfig()

INPAINTING_UNET = UNetConfig(in_channels=9)
SD2_UNET = UNetConfig(sample_size=96, heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
SD2_TEXT_ENCODER = TextEncoderConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    pad_token_id=0,
    projection_dim=512,
)
SDXL_UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    layers_per_block=(2, 2, 2),
    attention_levels=(False, True, True),
    only_cross_attention=(False, False, False),
    transformer_layers=(1, 2, 10),
    heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SDXL_REFINER_UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(384, 768, 1536, 1536),
    attention_levels=(False, True, True, False),
    transformer_layers=(4, 4, 4, 4),
    heads=(6, 12, 24, 24),
    cross_attention_dim=1280,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2560,
)
SDXL_TEXT_ENCODER_2 = TextEncoderConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    pad_token_id=0,
    projection_dim=1280,
    projection=True,
)
SDXL_AUTOENCODER = AutoencoderConfig(scaling_factor=0.13025, sample_size=1024)
UPSCALER_UNET = UNetConfig(
    sample_size=128,
    in_channels=7,
    block_out_channels=(256, 512, 512, 1024),
    attention_levels=(False, True, True, True),
    only_cross_attention=(True, True, True, False),
    cross_attention_dim=1024,
    use_linear_projection=True,
    num_class_embeds=1000,
)
UPSCALER_AUTOENCODER = AutoencoderConfig(block_out_channels=(128, 256, 512), scaling_factor=0.08333, sample_size=256)
