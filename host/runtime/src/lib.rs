//! Devices: what turns a planned graph into numbers.
//!
//! Owns storage (weights in their file format, trainable weights, states, the arena), the launch of every op, and the drawing of
//! initial values. Refuses to plan, differentiate or rewrite: a [`Device`] compiles a finished [`swift_graph::plan::Plan`] and
//! nothing above it dispatches op by op, so a device with streams and captured graphs needs no change above.
//!
//! ```text
//! Plan --Device::compile--> Executable --run(Store, Bindings, Inputs)--> Outputs
//! ```
//!
//! **Invariant:** the same plan, store, bindings and inputs give bitwise the same results for any number of threads.

pub mod bench;
mod buffer;
pub mod cpu;
mod device;
mod error;
mod profile;
pub mod random;
mod store;
mod tensor;

pub use cpu::{CpuDevice, CpuOptions};
pub use device::{Device, DeviceInfo, Elements, Executable, Inputs, OutputView, Outputs, Precision};
pub use error::{Error, Result};
pub use profile::{Profile, ProfileRow};
pub use random::Distribution;
pub use store::{Bytes, DenseTensor, Kind, Owner, PackedState, Store, StoreBytes, Tenant, decode, encode};
pub use swift_kernels::ceiling::Ceilings;
pub use swift_kernels::format::Format;
pub use swift_kernels::isa::Isa;
pub use swift_kernels::quant::round_nf4_scales;
pub use tensor::HostTensor;
