//! Joins the rooms of one role and owns the order of starting and ending.
