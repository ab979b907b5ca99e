"""The page a person reads after a run, and its short form in the terminal.

`summary` is the contract: a plain JSON dictionary that the run writes. `compare` computes from it
every accuracy that is shown, `adaptive_consistency` what the rule saves, so page and terminal
cannot disagree. `page` writes one HTML file without network or JavaScript; `charts` draws its SVG;
`terminal` prints the before/after table.
"""
