"""A DataModule as a Trainer would set it up, without one."""

from types import SimpleNamespace

from lightning_vlmq import VLM, Demonstrations


def attach(data: Demonstrations, vlm: VLM) -> Demonstrations:
    """What a Trainer would do."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(vlm=vlm),
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device="cpu"),
        default_root_dir=".",
    )
    data.prepare_data()
    data.setup("fit")
    return data
