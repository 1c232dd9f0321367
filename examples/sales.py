#!/usr/bin/env python3
"""A small data analysis with nothing but the standard library.

Reads sales.csv, or makes one up, and writes report.txt and report.svg. Run it in a sandbox and take the results out:

    firebreak run --output report.txt --output report.svg examples/sales.py
"""

import csv
import random
import statistics
import sys
from collections import defaultdict
from pathlib import Path

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
COLOURS = {"North": "#3b6ea5", "South": "#c8553d", "East": "#588157", "West": "#8d6a9f"}


def make(path):
    """Writes a year of made-up sales, the same every time."""
    rng = random.Random(2026)
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["month", "region", "units", "price"])
        for number, month in enumerate(MONTHS):
            season = 1 + 0.4 * (number in (10, 11)) - 0.2 * (number in (0, 1))
            for base, region in zip((120, 90, 150, 60), COLOURS):
                for _ in range(25):
                    units = max(1, round(rng.gauss(base * season / 25, 1.5)))
                    out.writerow([month, region, units, f"{rng.uniform(9, 49):.2f}"])


def read(path):
    """Returns the revenue of each sale, and by region and month."""
    sales, table = [], defaultdict(float)
    with path.open(newline="") as f:
        for row in csv.DictReader(f):
            revenue = int(row["units"]) * float(row["price"])
            sales.append(revenue)
            table[row["region"], row["month"]] += revenue
    return sales, table


def trend(values):
    """The slope of the straight line through the values."""
    return statistics.linear_regression(range(len(values)), values).slope


def report(sales, table, out):
    total = sum(sales)
    print(f"{len(sales)} sales, {total:,.2f} in all", file=out)
    print(f"median {statistics.median(sales):.2f}, standard deviation {statistics.stdev(sales):.2f}\n", file=out)
    print(f"{'region':8} {'revenue':>12} {'share':>7} {'best month':>11} {'trend/month':>12}", file=out)
    for region in sorted(COLOURS, key=lambda r: -sum(table[r, m] for m in MONTHS)):
        months = [table[region, m] for m in MONTHS]
        best = MONTHS[months.index(max(months))]
        print(f"{region:8} {sum(months):12,.2f} {sum(months) / total:7.1%} {best:>11} {trend(months):+12.2f}", file=out)


def draw(table, path):
    """Writes stacked bars, one a month."""
    width, height, left, bottom = 640, 320, 50, 40
    top = max(sum(table[r, m] for r in COLOURS) for m in MONTHS)
    scale, step = (height - bottom - 30) / top, (width - left - 20) / len(MONTHS)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, month in enumerate(MONTHS):
        x, y = left + i * step, height - bottom
        for region, colour in COLOURS.items():
            tall = table[region, month] * scale
            y -= tall
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{tall:.1f}" fill="{colour}">'
                         f'<title>{region}, {month}: {table[region, month]:,.0f}</title></rect>')
        parts.append(f'<text x="{x + step * 0.35:.1f}" y="{height - bottom + 16}" text-anchor="middle">{month}</text>')
    for i, (region, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{left + i * 80}" y="8" width="10" height="10" fill="{colour}"/>'
                     f'<text x="{left + i * 80 + 14}" y="17">{region}</text>')
    path.write_text("\n".join(parts + ["</svg>"]) + "\n")


def main():
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "sales.csv")
    if not source.exists():
        make(source)
    sales, table = read(source)
    report(sales, table, sys.stdout)
    with open("report.txt", "w") as f:
        report(sales, table, f)
    draw(table, Path("report.svg"))
    print("\nwrote report.txt and report.svg", file=sys.stderr)


if __name__ == "__main__":
    main()
