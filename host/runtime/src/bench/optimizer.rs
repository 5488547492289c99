//! Updates of weights: the program that an optimizer plugin's trace becomes, on arrays past the caches.

use swift_graph::op::UnaryOp;
use swift_graph::{DType, NodeId, Target, Type};

use super::Bound;
use super::cases::{Build, Case, dims, sizes_text};
use crate::Result;

/// Elements of each array: 256 MB.
const SHAPE: [usize; 2] = [65536, 1024];

/// AdamW (Loshchilov and Hutter 2019): reads weight, gradient and both moments, writes all but the gradient.
fn adamw(c: &mut Case) -> Result<()> {
    let (rate, decay, beta1, beta2, eps) = (1e-3, 0.1, 0.9, 0.95, 1e-8);
    let [(w, at_w), (m, at_m), (v, at_v)] = [state(c, "w")?, state(c, "m")?, state(c, "v")?];
    let grad = c.x(&SHAPE)?;
    let g = &mut c.graph;
    let apart = g.sub(grad, m)?;
    let apart = g.scale(apart, 1.0 - beta1)?;
    let m = g.add(m, apart)?;
    let (old, square) = (g.scale(v, beta2)?, g.mul(grad, grad)?);
    let square = g.scale(square, 1.0 - beta2)?;
    let v = g.add(old, square)?;
    let root = g.unary(UnaryOp::Sqrt, v)?;
    let root = g.scale(root, 1.7)?;
    let eps = g.scalar(eps, DType::F32)?;
    let root = g.add(root, eps)?;
    let step = g.div(m, root)?;
    let step = g.scale(step, 10.0 * rate)?;
    let kept = g.scale(w, 1.0 - rate * decay)?;
    let w = g.sub(kept, step)?;
    for (target, value) in [(at_w, w), (at_m, m), (at_v, v)] {
        g.write(target, value, false)?;
    }
    Ok(())
}

fn state(c: &mut Case, name: &str) -> Result<(NodeId, Target)> {
    let id = c.graph.declare_state(name, Type::f32(dims(&SHAPE)))?;
    Ok((c.graph.read_state(id)?, Target::State(id)))
}

pub(super) fn cases() -> Vec<Build> {
    vec![Box::new(|device| {
        let bytes = (7 * SHAPE[0] * SHAPE[1] * size_of::<f32>()) as f64;
        let mut c = Case::new(device, "adamw", sizes_text(&SHAPE), "F32", bytes, Bound::Copy);
        adamw(&mut c)?;
        Ok(c)
    })]
}
