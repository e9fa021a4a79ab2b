"""The report: run directories as one self-contained HTML page, which shows whether a run learns and what it learnt."""
