//! Tables for the queue.
