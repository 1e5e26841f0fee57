"""The report: one self-contained page of a run, or of several side by side."""

from pretrain.report.story import tell as tell
from pretrain.report.verdicts import judge_health as judge_health
from pretrain.report.write import COMPARISON_FILE as COMPARISON_FILE
from pretrain.report.write import REPORT_FILE as REPORT_FILE
from pretrain.report.write import write_comparison as write_comparison
from pretrain.report.write import write_report as write_report
