"""The gold set, the measures and the corrections of the judge."""
