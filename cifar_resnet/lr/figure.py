"""The picture of a learning-rate search: one look says why these bounds."""

from matplotlib.figure import Figure

from cifar_resnet.lr.bounds import DESCENT_ON_FLOOR, Bounds

BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by everyone (Okabe & Ito 2008, "Color Universal Design")


def draw_lr_search(bounds: Bounds, sweeps: list[list[float]]) -> Figure:
    """Draw the raw losses and the smoothed loss against the rate, with the places of the rule and the bounds marked."""
    descent = bounds.start - bounds.floor
    figure = Figure(figsize=(7, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.axvspan(bounds.lr_min, bounds.lr_max, color=BLUE, alpha=0.10, label="rates of the One Cycle schedule")
    axes.axvspan(*bounds.lr_max_interval, color=BLUE, alpha=0.25, label="LRMAX within the noise (5–95 %)")
    for number, losses in enumerate(sweeps):
        label = None if number else "raw loss of each step"
        axes.scatter(bounds.rates[: len(losses)], losses[: len(bounds.rates)], s=12, color="#999999", label=label)
    axes.plot(bounds.rates, bounds.smoothed, color=ORANGE, linewidth=2, label="smoothed")
    axes.plot(
        bounds.middle, bounds.start - descent / 2, "o", ms=9, mfc="white", mec=ORANGE, mew=2, zorder=3,
        label=f"half of the descent, at LRMAX / {bounds.lr_max / bounds.middle:.2g}",
    )  # fmt: skip
    is_cap = bounds.floor_end < bounds.most_over_middle * bounds.middle
    floor_end = "end of the floor, which caps LRMAX" if is_cap else "end of the floor"
    level = bounds.start - DESCENT_ON_FLOOR * descent
    axes.plot(bounds.floor_end, level, "v", ms=9, mfc="white", mec=ORANGE, mew=2, zorder=3, label=floor_end)
    # Between the two lines and above the start, where there is no curve; in rows of their own, should they be close.
    for name, rate, side, row in (("LRMIN", bounds.lr_min, "left", 1), ("LRMAX", bounds.lr_max, "right", 2)):
        axes.axvline(rate, color=BLUE, linewidth=1.5)
        axes.annotate(
            f"{name} {rate:.2g}", (rate, 1), xycoords=("data", "axes fraction"),
            xytext=(5 if side == "left" else -5, -15 * row), textcoords="offset points", ha=side, color=BLUE,
            weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    axes.set_ylim(bounds.floor - 0.15 * descent, bounds.start + 0.35 * descent)
    axes.set_title(f"{bounds.verdict}: the smoothed loss falls from {bounds.start:.2f} to {bounds.floor:.2f}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
