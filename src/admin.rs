//! What a running node tells, over HTTP on a unix socket or a TCP port.
