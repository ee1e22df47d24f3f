"""Reinforcement-learning agents for image problems: landmarks, registration, interactive segmentation and more."""

from __future__ import annotations

from gymnasium.envs.registration import register

__version__ = "0.1.0"

# named by strings, so that importing medrl loads neither torch nor MONAI
register("medrl/Landmark-v0", entry_point="medrl.gym:landmark", vector_entry_point="medrl.gym:landmark_vector")
