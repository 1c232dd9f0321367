# Reads the numbers back out of a figure of matplotlib, for clients that draw it themselves.


def chart(figure):
    charts = [one(axes) for axes in figure.axes if axes.get_visible()]
    if not charts:
        return None
    if len(charts) == 1:
        if not charts[0]["title"] and getattr(figure, "_suptitle", None):
            charts[0]["title"] = figure._suptitle.get_text()
        return charts[0]
    title = figure._suptitle.get_text() if getattr(figure, "_suptitle", None) else None
    return {"type": "superchart", "title": title, "elements": charts}


def one(axes):
    from matplotlib.collections import PathCollection
    from matplotlib.container import BarContainer
    from matplotlib.patches import Wedge
    wedges = [p for p in axes.patches if isinstance(p, Wedge)]
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    title = axes.get_title() or None
    if wedges:
        texts = [t.get_text() for t in axes.texts if t.get_text() and not t.get_text().endswith("%")]
        return {"type": "pie", "title": title, "elements": [
            {"label": label(w) or (texts[i] if i < len(texts) else None), "angle": abs(w.theta2 - w.theta1), "radius": w.r}
            for i, w in enumerate(wedges)]}
    x_label, y_label = axes.get_xlabel() or None, axes.get_ylabel() or None
    flat = {"title": title, "x_label": x_label, "y_label": y_label, "x_unit": unit(x_label), "y_unit": unit(y_label)}
    if bars:
        return dict(flat, type="bar", elements=[e for c in bars for e in bar(axes, c)])
    boxes = box_plots(axes)
    if boxes:
        return dict(flat, type="box_and_whisker", elements=boxes)
    flat.update(scale("x", axes.xaxis))
    flat.update(scale("y", axes.yaxis))
    if axes.lines:
        return dict(flat, type="line", elements=[
            {"label": label(line), "points": points(line.get_xdata(), line.get_ydata())} for line in axes.lines])
    if dots:
        return dict(flat, type="scatter", elements=[
            {"label": label(c), "points": points(*zip(*c.get_offsets().tolist()))} for c in dots if len(c.get_offsets())])
    return {"type": "unknown", "title": title, "elements": []}


def label(artist):
    text = artist.get_label()
    return text if isinstance(text, str) and not text.startswith("_") else None


def unit(text):
    """Finds the s of "Time (s)" or "Time [s]". The label keeps it too: so do E2B's kernels."""
    for opening, closing in ("()", "[]"):
        found, rest = (text or "").partition(opening)[1:]
        if found and rest.rstrip().endswith(closing):
            return rest.rstrip()[:-1].strip() or None
    return None


def points(xs, ys):
    return [[plain(x), plain(y)] for x, y in zip(list(xs)[:100000], list(ys)[:100000])]


def plain(value):
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ == "datetime64":
        return str(value)
    return value.item() if hasattr(value, "item") else value


def scale(name, axis):
    kind = axis.get_scale()
    if "Date" in type(axis.get_major_formatter()).__name__:
        kind = "datetime"
    elif type(axis.get_major_formatter()).__name__ == "StrCategoryFormatter":
        kind = "categorical"
    return {name + "_ticks": [plain(t) for t in axis.get_ticklocs()],
            name + "_tick_labels": [t.get_text() for t in axis.get_ticklabels()], name + "_scale": kind}


def bar(axes, container):
    lying = getattr(container, "orientation", None) == "horizontal"
    axis = axes.yaxis if lying else axes.xaxis
    names = dict(zip((round(float(t), 6) for t in axis.get_ticklocs()), (t.get_text() for t in axis.get_ticklabels())))
    for patch in container.patches:
        if lying:
            at, value = patch.get_y() + patch.get_height() / 2, patch.get_width()
        else:
            at, value = patch.get_x() + patch.get_width() / 2, patch.get_height()
        yield {"label": names.get(round(float(at), 6)) or str(plain(at)), "group": label(container) or "", "value": plain(value)}


def box_plots(axes):
    """Knows boxplot() by what it draws: for each box one outline, two whiskers, two caps, a median and outliers."""
    outlines = [line for line in axes.lines if len(line.get_xdata()) == 5]
    if not outlines or len(axes.lines) != 7 * len(outlines):
        return []
    elements, names = [], [t.get_text() for t in axes.get_xticklabels()]
    for i, outline in enumerate(outlines):
        box, low, high, _, _, median, outliers = axes.lines[7 * i:7 * i + 7]
        ys = [float(y) for y in box.get_ydata()]
        elements.append({
            "label": names[i] if i < len(names) else "", "min": float(min(low.get_ydata())), "first_quartile": min(ys),
            "median": float(median.get_ydata()[0]), "third_quartile": max(ys), "max": float(max(high.get_ydata())),
            "outliers": [float(y) for y in outliers.get_ydata()]})
    return elements
