//! Dropout whose mask is a function of (key, stream, element); works in place.

use swift_graph::op::Dropout as DropoutOp;
use swift_kernels::random::dropout_raw;

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// `out = x / (1 - rate)` where the element's word is not below `rate` of 2^32, else 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    rate: f64,
    stream: u32,
    x: Ref,
    key: Ref,
    out: Ref,
}

impl Dropout {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let key = m.i32(self.key);
        let key = [key[0].cast_unsigned(), key[1].cast_unsigned()];
        // SAFETY: both have as many elements and are equal or disjoint; checked when the launch was prepared.
        unsafe { dropout_raw(m.pool, key, self.stream, self.rate, self.out.len, m.ptr(self.x), m.ptr(self.out)) };
        Ok(())
    }
}

pub(super) fn prepare(op: &DropoutOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (x, key, out) = (p.input_in_place(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::Dropout(Dropout { rate: op.rate.0, stream: op.stream, x, key, out }))
}
