"""Renderings of a report, the dict of report.json: sentences, Markdown, a web page, plots, a table for the terminal."""
