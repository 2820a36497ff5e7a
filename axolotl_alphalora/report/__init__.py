"""How a plan, an analysis, a comparison, a trained adapter and an export are described.

What was measured is reduced to findings, tables and sentences once; renderers show these in a
terminal, in a page and in Markdown. Nothing here measures, and nothing here knows the command line
or Axolotl.
"""
