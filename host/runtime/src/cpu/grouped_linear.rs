//! Products with the weight of each row's experts, in its storage format where it is a parameter.

use swift_kernels::linear::grouped::{
    Groups, grouped_linear, grouped_linear_dw, grouped_linear_dx, grouped_linear_int8, groups_len,
};

use super::Kernel;
use super::gather::check;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// Which experts rows choose, and where the pairs are sorted.
#[derive(Clone, Copy, Debug)]
struct Choice {
    experts: Ref,
    choices: usize,
    count: usize,
    memory: Ref,
}

impl Choice {
    /// The op's experts `[n, choices]` are its last input.
    fn prepare(p: &mut Prepare<'_, '_>, count: usize) -> Result<Choice> {
        let dims = p.dims(2)?;
        if dims[1] == 0 {
            return Err(p.unsupported("rows that choose no expert"));
        }
        let memory = p.scratch(groups_len(dims[0] * dims[1], count));
        Ok(Choice { experts: p.input(2)?, choices: dims[1], count, memory })
    }

    fn groups<'m>(&self, op: &'static str, m: &'m Memory<'_>) -> Result<Groups<'m>> {
        let experts = m.i32(self.experts);
        check(op, "expert", experts, self.count, true)?;
        Ok(Groups::new(experts, self.choices, self.count, m.bits_mut(self.memory)))
    }
}

/// `y[i, j] = w[experts[i, j]] x[i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward {
    choice: Choice,
    x: Ref,
    weight: WeightRef,
    out: Ref,
    /// Rows of each pair, as floats or in 8 bits.
    gathered: Ref,
    /// Whether activations are rounded if the weight is in panels.
    int8: bool,
}

impl Forward {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let groups = self.choice.groups("grouped-linear", m)?;
        if self.int8
            && let Some(panels) = m.panels(&self.weight)
        {
            let (out, rounded) = (m.f32_mut(self.out), m.bits_mut(self.gathered));
            grouped_linear_int8(m.pool, &groups, m.f32(self.x), &panels, out, rounded);
            return Ok(());
        }
        grouped_linear(m.pool, &groups, m.f32(self.x), &m.factor(&self.weight), m.f32_mut(self.out), m.f32_mut(self.gathered));
        Ok(())
    }
}

/// The stack of matrices `[e, out, in]` as one of `e · out` rows.
fn stack(p: &mut Prepare<'_, '_>) -> Result<(usize, WeightRef)> {
    let dims = p.dims(1)?;
    if dims.contains(&0) {
        return Err(p.unsupported(format!("the weight is empty: {dims:?}")));
    }
    Ok((dims[0], p.stack(1, [dims[0], dims[1], dims[2]])?))
}

pub(super) fn forward(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (count, weight) = stack(p)?;
    let choice = Choice::prepare(p, count)?;
    let x = p.input(0)?;
    let gathered = p.scratch(x.len * choice.choices);
    let int8 = p.rounds(&weight);
    Ok(Kernel::GroupedLinear(Forward { choice, x, weight, out: p.output(0)?, gathered, int8 }))
}

/// `d_x[i] = sum over j of d_y[i, j] w[experts[i, j]]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradient {
    choice: Choice,
    d_y: Ref,
    weight: WeightRef,
    out: Ref,
    gathered: Ref,
    parts: Ref,
}

impl Gradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let groups = self.choice.groups("grouped-linear-dx", m)?;
        let (gathered, parts) = (m.f32_mut(self.gathered), m.f32_mut(self.parts));
        grouped_linear_dx(m.pool, &groups, m.f32(self.d_y), &m.factor(&self.weight), m.f32_mut(self.out), gathered, parts);
        Ok(())
    }
}

pub(super) fn dx(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (count, weight) = stack(p)?;
    let choice = Choice::prepare(p, count)?;
    let (d_y, out) = (p.input(0)?, p.output(0)?);
    let (gathered, parts) = (p.scratch(d_y.len), p.scratch(out.len * choice.choices));
    Ok(Kernel::GroupedGradient(Gradient { choice, d_y, weight, out, gathered, parts }))
}

/// `d_w[e] = sum over the pairs of e of d_yᵀ x`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightGradient {
    choice: Choice,
    sizes: (usize, usize),
    d_y: Ref,
    x: Ref,
    out: Ref,
    gathered: Ref,
}

impl WeightGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let groups = self.choice.groups("grouped-linear-dw", m)?;
        let (d_y, x) = (m.f32(self.d_y), m.f32(self.x));
        grouped_linear_dw(m.pool, &groups, self.sizes, d_y, x, m.f32_mut(self.out), m.f32_mut(self.gathered));
        Ok(())
    }
}

pub(super) fn dw(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let out_dims = p.out_dims(0)?;
    let choice = Choice::prepare(p, out_dims[0])?;
    let (d_y, x, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    let gathered = p.scratch(d_y.len + x.len * choice.choices);
    let sizes = (out_dims[1], out_dims[2]);
    Ok(Kernel::GroupedWeightGradient(WeightGradient { choice, sizes, d_y, x, out, gathered }))
}
