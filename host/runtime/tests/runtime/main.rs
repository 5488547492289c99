//! The CPU device against the graph's f64 interpreter: every op alone, a whole model, and runs that must be refused.

mod case;
mod int8;
mod model;
mod ops;
mod optimizer;
mod products;
mod refusals;
