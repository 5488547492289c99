//! States in 8 bits: as floats for launches that know no other form, and rounded when they are written.

use swift_graph::dynamic8::Map;
use swift_graph::{StateId, Target};
use swift_kernels::dynamic8::{self, PackedMut};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::{Prepare, Scope};
use crate::Result;
use crate::store::parts;

/// Where a state in 8 bits lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedRef {
    pub(super) map: Map,
    /// Elements.
    pub(super) len: usize,
    pub(super) words: Ref,
}

impl PackedRef {
    /// The state, which the launch may change.
    pub(super) fn parts<'a>(&self, m: &'a Memory<'_>) -> PackedMut<'a> {
        parts(self.map, self.len, m.bits_mut(self.words))
    }
}

/// A state as floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpack {
    state: PackedRef,
    out: Ref,
}

impl Unpack {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let PackedMut { map, codes, absmax } = self.state.parts(m);
        dynamic8::dequantize(m.pool, map, codes, absmax, m.f32_mut(self.out));
        Ok(())
    }
}

/// Floats into a state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pack {
    src: Ref,
    state: PackedRef,
}

impl Pack {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        dynamic8::quantize(m.pool, m.f32(self.src), self.state.parts(m));
        Ok(())
    }
}

pub(super) fn read(state: StateId, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    match p.packed_state(state)? {
        Some(state) => Ok(Kernel::Unpack(Unpack { state, out: p.output(0)? })),
        None => Err(p.scope.broken(p.launch.node, "it computes nothing that could be launched")),
    }
}

/// The effect that writes a state in 8 bits; `None` for other targets.
pub(super) fn write(scope: &mut Scope<'_>, target: Target, src: Ref) -> Option<Kernel> {
    let Target::State(id) = target else { return None };
    let map = scope.plan.graph.states()[id.index()].map?;
    let words = scope.target(target);
    Some(Kernel::Pack(Pack { src, state: PackedRef { map, len: src.len, words } }))
}
