//! A step of Adam. The kernels work in place; where the plan has results elsewhere, operands are copied there first.

use swift_graph::op;
use swift_graph::plan::Place;
use swift_kernels::adam::{self, Step};

use super::Kernel;
use super::dynamic8::PackedRef;
use super::identity::copy;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// Where the moments lie.
#[derive(Clone, Copy, Debug)]
enum Moments {
    /// From and to, for each.
    Floats([(Ref, Ref); 2]),
    Packed([PackedRef; 2]),
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Adam {
    op: op::Adam,
    g: Ref,
    w: (Ref, Ref),
    moments: Moments,
    /// `clip`, `decay`, `correction`, `rate`.
    scalars: [Ref; 4],
}

impl Adam {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let [clip, decay, correction, rate] = self.scalars.map(|r| m.f32(r)[0]);
        let by = Step {
            clip,
            one_minus_beta1: self.op.one_minus_beta1.0 as f32,
            beta2: self.op.beta2.0 as f32,
            one_minus_beta2: self.op.one_minus_beta2.0 as f32,
            epsilon: self.op.epsilon.0 as f32,
            correction,
            rate,
            decay,
        };
        let in_place = |(from, to): (Ref, Ref)| {
            if !m.same(from, to) {
                copy(m, from, to);
            }
            m.f32_mut(to)
        };
        match &self.moments {
            Moments::Floats([first, second]) => {
                adam::step(m.pool, &by, m.f32(self.g), in_place(self.w), in_place(*first), in_place(*second));
            }
            Moments::Packed([first, second]) => {
                adam::step_packed(m.pool, &by, m.f32(self.g), in_place(self.w), first.parts(m), second.parts(m));
            }
        }
        Ok(())
    }
}

pub(super) fn prepare(op: &op::Adam, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let g = p.input(0)?;
    let w = (p.input_in_place(op::Adam::replaces(0))?, p.output(0)?);
    let moments = match op.packed {
        false => {
            let from = [p.input_in_place(op::Adam::replaces(1))?, p.input_in_place(op::Adam::replaces(2))?];
            Moments::Floats([(from[0], p.output(1)?), (from[1], p.output(2)?)])
        }
        true => Moments::Packed([packed(p, 1)?, packed(p, 2)?]),
    };
    let scalars = [p.input(4)?, p.input(5)?, p.input(6)?, p.input(7)?];
    Ok(Kernel::Adam(Adam { op: op.clone(), g, w, moments, scalars }))
}

/// The state that an output is written to, and that its input is.
fn packed(p: &mut Prepare<'_, '_>, output: usize) -> Result<PackedRef> {
    let place = |node: swift_graph::NodeId| p.scope.plan.places[node.index()];
    let from = place(p.node.inputs[op::Adam::replaces(output)]);
    let to = p.launch.outputs[output].map(place);
    if let Place::State(id) = from
        && to == Some(from)
        && let Some(state) = p.packed_state(id)?
    {
        return Ok(state);
    }
    Err(p.scope.broken(p.launch.node, "a moment in 8 bits is not written where it was read"))
}
