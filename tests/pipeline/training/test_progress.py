"""The text of progress lines and of a bad step."""

from pipeline.training.progress import (
    build_metrics,
    describe_bad_step,
    format_evaluation,
    format_progress,
)
from pipeline.training.step import BadStep, Summary


def test_a_progress_line_reads_like_other_trainers():
    means = {"loss": 1.234, "loss_new": 0.5, "loss_box": 0.3, "loss_mask": 1.034}
    summary = Summary(means, steps=20, seconds=10.0, data_wait_s=0.2)
    metrics = build_metrics(
        summary, epoch=1, lr=0.0125, global_batch=16, memory_bytes=8_300_000_000
    )
    assert format_progress(metrics, done=120, steps=90_000) == (
        "step 120/90000  loss 1.23 (mask 1.03 box .30 new .50)  lr 0.0125  32.0 img/s  data 2%  "
        "mem 8.3 GB  eta 12:29:00"
    )


def test_an_evaluation_line_has_the_main_metrics():
    metrics = {"boundary_ap": 0.1, "mask_ap": 0.215, "mask_ap_small": 0.05}
    assert format_evaluation(metrics, done=100) == "step 100  mask_ap .21  boundary_ap .10"


def test_a_bad_step_names_its_losses_and_at_most_16_images():
    worker = {
        "rank": 0,
        "image_id": list(range(20)),
        "losses": {"loss_mask": float("nan"), "loss_box": 0.5, "gradient_norm": float("inf")},
        "finite": False,
    }
    bad = BadStep(step=7, epoch=0, lr=0.01, workers=(worker,))
    text = describe_bad_step(bad, run_uri="runs/a", resume="python jobs/a.py", checkpoint_step=5)
    assert text.startswith("step 7 (epoch 0, lr 1.00e-02): gradient_norm, loss_mask not finite.")
    assert "14, 15 and 4 more. They are saved in runs/a/bad_batch.json" in text
    assert text.endswith("To try the same step again: python jobs/a.py")
