"""The data audit: one function per check, each from a `Subject` to findings with rows and remedies.

report = audit(read("pairs.jsonl", bad_rows="skip"), against=["embedded"])
print(report)

run       audit, AuditReport       checks         the table          finding    AuditFinding
corpus    examples as arrays       texts, words   texts on disk, their hashes and signatures
fix       a cleaned copy           pictures       what the page draws
"""

from posttrain.auditing.checks import AUDIT_CHECKS, AuditCheck
from posttrain.auditing.contamination import evaluation_set
from posttrain.auditing.finding import AuditFinding
from posttrain.auditing.run import AuditReport, audit
from posttrain.auditing.subject import EvaluationSet

__all__ = ["AUDIT_CHECKS", "AuditCheck", "AuditFinding", "AuditReport", "EvaluationSet", "audit", "evaluation_set"]
