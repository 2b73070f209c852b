"""The data audit: one function per check, each from a `Subject` to findings with rows and remedies.

report = audit(read("pairs.jsonl", bad_rows="skip"), against=["embedded"])
print(report)

run       audit, AuditReport       checks         the table          finding    Finding
corpus    examples as arrays       texts, words   texts on disk, their hashes and signatures
fix       a cleaned copy           pictures       what the page draws
"""

from posttrain.data.audit.checks import CHECKS, Check
from posttrain.data.audit.contamination import EvaluationSet, evaluation_set
from posttrain.data.audit.finding import Finding
from posttrain.data.audit.run import AuditReport, audit

__all__ = ["CHECKS", "AuditReport", "Check", "EvaluationSet", "Finding", "audit", "evaluation_set"]
