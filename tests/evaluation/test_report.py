"""The tables that evaluations end with."""

from grounding_dino.evaluation.report import results_table


def test_the_table_of_several_data_sets_and_kinds_of_metrics() -> None:
    results = {
        "shapes_val": {"bbox": {"AP": 61.234, "AP50": 80.0, "AP-red circle": 3.0}},
        "shapes_val_refexp": {"refexp": {"P@1": 70.5, "mIoU": float("nan")}},
    }
    assert results_table(results, list(results)).splitlines() == [
        "  data set                     AP   AP50    P@1  mIoU",
        "  shapes_val bbox           61.23  80.00",
        "  shapes_val_refexp refexp                70.50   nan",
    ]
    assert results_table({"bbox": {"AP": 5.0}}, ["one"]).splitlines()[1] == "  one bbox  5.00"
