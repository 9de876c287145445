"""The results that the UltraFuser paper reports (arXiv 2403.08281, ACL 2025), in percent, zero-shot and without CoT.

The paper's gate weights are in `report.gate_checks`.
"""

MODELS = {
    "UltraLM-2": {"TQA": 58.82, "HEval": 25.61, "GSM8K": 25.09, "MATH": 4.48, "SAT": 25.00, "AQuA": 25.98},
    "CodeLlama": {"TQA": 56.89, "HEval": 48.78, "GSM8K": 23.12, "MATH": 6.16, "SAT": 27.73, "AQuA": 25.59},
    "WizardMath": {"TQA": 26.81, "HEval": 10.98, "GSM8K": 56.18, "MATH": 12.2, "SAT": 29.55, "AQuA": 22.05},
    "UltraLM-2 fine-tuned on the same data": {
        "TQA": 58.82,
        "HEval": 40.24,
        "GSM8K": 54.59,
        "MATH": 10.46,
        "SAT": 25.00,
        "AQuA": 28.74,
    },
    "BTX": {"TQA": 34.82, "HEval": 20.73, "GSM8K": 11.14, "MATH": 4.14, "SAT": 21.82, "AQuA": 20.47},
    "UltraFuser": {"TQA": 64.67, "HEval": 53.03, "GSM8K": 54.59, "MATH": 11.36, "SAT": 30.00, "AQuA": 26.38},
}

# task of the harness, or of examples/tasks → the paper's column, and the metric that it is
COLUMNS = {
    "truthfulqa_mc2": ("TQA", "acc"),
    "humaneval": ("HEval", "pass@1"),
    "humaneval_instruct": ("HEval", "pass@1"),
    "humaneval_local": ("HEval", "pass@1"),
    "gsm8k": ("GSM8K", "exact_match"),
    "hendrycks_math": ("MATH", "exact_match"),
    "agieval_sat_math": ("SAT", "acc"),
    "agieval_aqua_rat": ("AQuA", "acc"),
}
