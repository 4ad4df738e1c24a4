"""Write the measured facts of README.md from the newest dated reports; the tests compare the two.

    python labs/readme_facts.py            # rewrite the block between the markers
    python labs/readme_facts.py --check    # exit 1 if it is not what the reports say

Each cell of the table comes from the newest report of `benchmarks/overhead.py` that measured this model with this
method. A method that failed in that report is shown as failing.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORTS = ROOT / "benchmarks/reports"
BEGIN, END = "<!-- facts: begin (make facts) -->\n", "<!-- facts: end -->\n"
MODELS = {"MNIST CNN": "mnist-cnn", "ResNet-20 (GroupNorm)": "resnet-20", "GPT": "gpt", "MLP": "mlp"}
METHODS = {
    "variegrad": "variegrad exact",
    "Opacus ghost": "Opacus ghost",
    "BackPACK": "BackPACK BatchL2Grad",
    "torch.func": "torch.func",
}
NOT_RUN = ("no: not run", "")


def reports(kind):
    """The dated reports of a benchmark, newest first."""
    return sorted(REPORTS.glob(f"{kind}-[0-9]*.md"), reverse=True)


def table(report):
    """{model: {method: text}} of a report's first table."""
    paragraphs = report.read_text().split("\n\n")
    first = next(paragraph for paragraph in paragraphs if paragraph.startswith("| model"))
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines())
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def measured(model, method):
    """What the newest report that tried a method on a model says, and that report."""
    for report in reports("overhead"):
        text = table(report).get(model, {}).get(method, "")
        if text not in NOT_RUN:
            return ("fails" if text.startswith("no:") else text.split()[0]), report
    raise SystemExit(f"no report in {REPORTS} measures {method} on {model}")


def link(report, text=None):
    return f"[{text or report.stem[-10:]}]({report.relative_to(ROOT)})"


def overhead():
    cells = {(model, method): measured(MODELS[model], METHODS[method]) for model in MODELS for method in METHODS}
    # Which reports each method's numbers are from; methods with the same ones are named together.
    sources = {}
    for method in METHODS:
        used = tuple(sorted({cells[model, method][1] for model in MODELS}, reverse=True))
        sources.setdefault(used, []).append(method)
    named = "; ".join(f"{', '.join(methods)}: {', '.join(map(link, used))}" for used, methods in sources.items())
    if len(sources) == 1:
        named = ", ".join(map(link, next(iter(sources)))) + ", one run"
    rows = [f"| {model} | " + " | ".join(cells[model, method][0] for method in METHODS) + " |" for model in MODELS]
    return [
        "Time of a step that also computes exact per-example gradient norms, divided by the time of a plain step, on 2",
        f"CPU cores ({named}):",
        "",
        f"| model | {' | '.join(METHODS)} |",
        "|---|" + "---:|" * len(METHODS),
        *rows,
    ]


def monitor():
    report = reports("monitor")[0]
    text = report.read_text()
    count, mean = re.search(r"Geometric mean over (\d+) models: \*\*([\d.]+)\*\*", text).groups()
    largest = max(table(report).values(), key=lambda row: float(row["ratio"].split()[0]))
    most, step = float(largest["ratio"].split()[0]), float(largest["plain step, ms"])
    return (
        f"* **Monitor** (one step in sixteen): {float(mean):.2f} times a plain loop (geometric mean, {count} models),\n"
        f"  and at most {most:.2f}, for a model whose step takes {step:.2g} ms ({link(report)})."
    )


def intervals():
    """Coverage at fixed weights, and at the default window (the smallest in its table) while training moves."""
    fixed = next(report for report in reports("pooled-bias") if "at fixed weights" in report.read_text())
    moving = next(report for report in reports("pooled-bias") if "## While training moves" in report.read_text())
    found = re.findall(r"\| (\d+) \| ([\d.]+)% \|", fixed.read_text())
    shares = [f"{share} %" for _, share in found]
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    rows = re.findall(
        r"^\| ([\d.]+) \| (\d+) \| (\d+) \| ([\d.]+)% \| [\d.]+% \| (\d+)% \|", moving.read_text(), flags=re.M
    )
    window = min(int(row[1]) for row in rows)
    rates = {rate: (inside, open_ended) for rate, size, _, inside, open_ended in rows if int(size) == window}
    held = " and ".join(f"{inside} % (learning rate {rate})" for rate, (inside, _) in rates.items())
    open_ended = " and ".join(f"{ends} %" for _, ends in rates.values())
    return (
        "* **Intervals**: during training, the Monitor's 95 % interval contains the true B_D at its last step in\n"
        f"  {held} of {int(rows[0][2]):,} readings on digits;\n"
        f"  {open_ended} of them have no upper limit ({link(moving)}).\n"
        f"  Pooled over 64 steps at fixed weights it contains B_D in {', '.join(shares[:-1])} and {shares[-1]} of\n"
        f"  {found[0][0]} runs on {words[len(found)]} networks ({link(fixed)})."
    )


def facts():
    """The block of the README, as the newest reports have it."""
    exact = "* **Exact**: the norms equal those of a loop over examples, to 1e-9 in float64, on more than 70 models."
    return "\n".join([*overhead(), "", exact, monitor(), intervals(), ""])


def main():
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = head + BEGIN + facts() + END + tail
    if "--check" in sys.argv[1:]:
        raise SystemExit(0 if new == text else "README.md differs from the newest reports. Try: make facts")
    README.write_text(new)


if __name__ == "__main__":
    main()
