//! A backend's own applications: does each answer?
