"""The report of a run: one HTML page, and its short form in the terminal.

summary     the schema of report.json
comparison  accuracies and changes with intervals and tests, for page, terminal and eval.json
page        the page's layout; its sections are accuracy_sections, vote_sections and
            training_sections, drawn with html and charts
terminal    tables that fit the width of the terminal
"""
