//! Reads the configuration: file, environment, arguments.
