//! Products with a weight, in its storage format where it is a parameter, with all that a layer does in one pass over its output. An
//! addend is the output's old value when the planner put both in one place, and is read where it lies otherwise.

use swift_graph::op::{Linear as LinearOp, LinearDw, LinearDx};
use swift_kernels::elementwise::Unary;
use swift_kernels::gemm::{Addend, MatRef, gemm};
use swift_kernels::linear::{self, Layer, int8};

use super::Kernel;
use super::elementwise::unary_op;
use super::identity::place_addend;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// `out = activation(alpha x Wᵀ + bias) + addend`, or with `backward` `out = alpha x W + addend`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    backward: bool,
    m: usize,
    alpha: f32,
    x: Ref,
    weight: WeightRef,
    bias: Option<Ref>,
    activation: Option<Unary>,
    addend: Option<Ref>,
    out: Ref,
    int8: Option<Rounding>,
}

/// Of a launch that rounds its activations if its weight is in panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// The launch before that could have done so read the same activations, and nothing wrote to them since.
    pub(super) repeats: bool,
}

impl Rounding {
    /// Keeps rounded activations for this launch only if they are its own.
    pub(super) fn begin(&self, m: &Memory<'_>) {
        if !self.repeats {
            m.forget_rounded();
        }
    }
}

impl Linear {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        if let Some(rounding) = self.int8 {
            rounding.begin(m);
            if let Some(part) = self.part(m) {
                int8::linear_int8_many(m.pool, self.m, m.rounded(self.m, self.weight.cols, self.x), [part]);
                return Ok(());
            }
        }
        let (weight, x) = (m.factor(&self.weight), m.f32(self.x));
        if self.backward {
            // Nearly always in place: gradients that are added to are read once.
            let beta = place_addend(m, self.addend, self.out)?;
            linear::linear_dx(m.pool, self.m, self.alpha, x, &weight, m.f32_mut(self.out), beta);
        } else {
            linear::linear_fused(m.pool, self.m, x, &weight, &self.layer(m), m.f32_mut(self.out));
        }
        Ok(())
    }
}

/// What is added to an output, `cols` wide.
pub(super) fn addend<'a>(m: &'a Memory<'_>, addend: Option<Ref>, out: Ref, cols: usize) -> Addend<'a> {
    match addend {
        None => Addend::None,
        Some(addend) if m.same(addend, out) => Addend::Output { beta: 1.0 },
        Some(addend) => Addend::Matrix { values: m.f32(addend), row_stride: cols, beta: 1.0 },
    }
}

impl Linear {
    fn layer<'a>(&self, m: &'a Memory<'_>) -> Layer<'a> {
        let addend = addend(m, self.addend, self.out, self.weight.rows);
        Layer { alpha: self.alpha, bias: self.bias.map(|b| m.f32(b)), activation: self.activation, addend }
    }

    /// The product in whole numbers, if the weight is in panels.
    fn part<'a>(&self, m: &'a Memory<'_>) -> Option<int8::Part<'a>> {
        let w = m.panels(&self.weight)?;
        Some(int8::Part { w, layer: self.layer(m), y: m.f32_mut(self.out) })
    }

    /// Whether `next`, the launch after this one, may run with it as one: both round the same activations, and neither needs what its
    /// output held.
    pub(super) fn joins(&self, next: &Linear) -> bool {
        let rounds = self.int8.is_some() && next.int8.is_some_and(|rounding| rounding.repeats);
        rounds && self.m == next.m && self.addend.is_none() && next.addend.is_none()
    }
}

/// Products of one input, such as queries, keys and values, or the gate and what it lets pass: one parallel loop.
#[derive(Debug)]
pub(crate) struct Linears(Vec<Linear>);

impl Linears {
    /// Most that run together.
    pub(super) const MOST: usize = 4;

    /// At most [`Linears::MOST`] launches, each of which joins the one before.
    pub(super) fn new(parts: Vec<Linear>) -> Linears {
        Linears(parts)
    }

    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        match self.0.as_slice() {
            [a, b] => together(m, [a, b]),
            [a, b, c] => together(m, [a, b, c]),
            [a, b, c, d] => together(m, [a, b, c, d]),
            other => other.iter().try_for_each(|part| part.run(m)),
        }
    }
}

fn together<const N: usize>(m: &Memory<'_>, linears: [&Linear; N]) -> Result<()> {
    let first = linears[0];
    // Formats without panels are computed one by one.
    if linears.iter().any(|linear| m.panels(&linear.weight).is_none()) {
        return linears.iter().try_for_each(|linear| linear.run(m));
    }
    first.int8.iter().for_each(|rounding| rounding.begin(m));
    let x = m.rounded(first.m, first.weight.cols, first.x);
    let parts = linears.map(|linear| linear.part(m).expect("all weights are in panels"));
    int8::linear_int8_many(m.pool, first.m, x, parts);
    Ok(())
}

/// Where the last input is that is added to a product, if there is one.
pub(super) fn place_of_addend(p: &mut Prepare<'_, '_>, has_addend: bool, is_activated: bool) -> Result<Option<Ref>> {
    let last = p.node.inputs.len() - 1;
    Ok(match (has_addend, is_activated) {
        (false, _) => None,
        (true, false) => Some(p.input_in_place(last)?),
        // Some kernels write what they apply the activation to.
        (true, true) => Some(p.input(last)?),
    })
}

/// The forward product, or that of the gradient in the input.
fn prepare(p: &mut Prepare<'_, '_>, op: &LinearOp, backward: bool) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let m = dims[..dims.len() - 1].iter().product();
    let (x, weight) = (p.input(0)?, p.factor(1)?);
    if weight.rows == 0 || weight.cols == 0 {
        return Err(p.unsupported(format!("the weight is empty: {} x {}", weight.rows, weight.cols)));
    }
    let bias = if op.bias { Some(p.input(2)?) } else { None };
    let addend = place_of_addend(p, op.addend, op.activation.is_some())?;
    let (alpha, activation) = (op.alpha.0 as f32, op.activation.map(unary_op));
    let int8 = if backward { None } else { p.rounding(m, x, &weight).map(|repeats| Rounding { repeats }) };
    Ok(Kernel::Linear(Linear { backward, m, alpha, x, weight, bias, activation, addend, out: p.output(0)?, int8 }))
}

pub(super) fn forward(op: &LinearOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    prepare(p, op, false)
}

pub(super) fn dx(op: &LinearDx, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    prepare(p, &LinearOp { alpha: op.alpha, addend: op.addend, ..LinearOp::plain() }, true)
}

/// `out = alpha d_yᵀ x`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightGradient {
    rows: usize,
    outputs: usize,
    inputs: usize,
    alpha: f32,
    d_y: Ref,
    x: Ref,
    out: Ref,
}

impl WeightGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let &WeightGradient { rows, outputs, inputs, alpha, .. } = self;
        let d_y = MatRef::new(m.f32(self.d_y), outputs).transposed();
        let x = MatRef::new(m.f32(self.x), inputs);
        gemm(m.pool, outputs, inputs, rows, alpha, d_y, x, m.f32_mut(self.out), inputs, 0.0);
        Ok(())
    }
}

pub(super) fn dw(op: &LinearDw, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (dims, x_dims) = (p.dims(0)?, p.dims(1)?);
    let last = dims.len() - 1;
    let (rows, outputs, inputs) = (dims[..last].iter().product(), dims[last], x_dims[last]);
    let (d_y, x, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::WeightGradient(WeightGradient { rows, outputs, inputs, alpha: op.alpha.0 as f32, d_y, x, out }))
}
