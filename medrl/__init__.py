"""Reinforcement-learning agents for image problems: landmarks, registration, interactive segmentation and more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medrl.bundle import Bundle


def load(bundle: Any, device: Any = None, **options: Any) -> Bundle:
    """Load a trained bundle by folder or name: `medrl.bundle.load`, imported at the first call."""
    from medrl.bundle import load

    return load(bundle, device, **options)


# named by strings, so that importing medrl loads neither torch nor MONAI
register("medrl/Seeding-v0", entry_point="medrl.gym:seeding", vector_entry_point="medrl.gym:seeding_vector")
register("medrl/Landmark-v0", entry_point="medrl.gym:landmark", vector_entry_point="medrl.gym:landmark_vector")
register(
    "medrl/Registration-v0", entry_point="medrl.gym_registration:registration",
    vector_entry_point="medrl.gym_registration:registration_vector",
)  # fmt: skip
register(
    "medrl/ImageRegistration-v0", entry_point="medrl.gym_registration:image_registration",
    vector_entry_point="medrl.gym_registration:image_registration_vector",
)  # fmt: skip
register(
    "medrl/Localisation-v0", entry_point="medrl.gym_localisation:localisation",
    vector_entry_point="medrl.gym_localisation:localisation_vector",
)  # fmt: skip
register(
    "medrl/Cutting-v0", entry_point="medrl.gym_cutting:cutting", vector_entry_point="medrl.gym_cutting:cutting_vector"
)
register(
    "medrl/Tracking-v0", entry_point="medrl.gym_tracking:tracking",
    vector_entry_point="medrl.gym_tracking:tracking_vector",
)  # fmt: skip
register(
    "medrl/BoxRefinement-v0", entry_point="medrl.gym_tracking:box_refinement",
    vector_entry_point="medrl.gym_tracking:box_refinement_vector",
)  # fmt: skip
