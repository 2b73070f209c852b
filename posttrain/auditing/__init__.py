"""The data audit: one function per check, each from a `Subject` to findings with rows and remedies.

report = audit(read("pairs.jsonl", bad_rows="skip"), against=["embedded"])
print(report)

run       audit, AuditReport       checks         the table          finding    Finding
corpus    examples as arrays       texts, words   texts on disk, their hashes and signatures
fix       a cleaned copy           pictures       what the page draws
"""

from posttrain.auditing.checks import CHECKS, Check
from posttrain.auditing.contamination import EvaluationSet, evaluation_set
from posttrain.auditing.finding import Finding
from posttrain.auditing.run import AuditReport, audit

__all__ = ["CHECKS", "AuditReport", "Check", "EvaluationSet", "Finding", "audit", "evaluation_set"]
