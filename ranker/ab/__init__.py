"""An online experiment's log: are its arms what was planned, and what did each change, at any look."""
