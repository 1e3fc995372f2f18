//! The program that a backend runs and offers.
