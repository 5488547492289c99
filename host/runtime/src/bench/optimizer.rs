//! Updates of weights: the program that an optimizer plugin's trace becomes, on arrays past the caches.

use swift_graph::dynamic8::Map;
use swift_graph::op::{BinaryOp, Read, UnaryOp};
use swift_graph::{DType, NodeId, ParamInfo, Target, Type};

use super::Bound;
use super::cases::{Build, Case, dims, sizes_text};
use crate::{HostTensor, Result};

/// Elements of each array: 256 MB.
const SHAPE: [usize; 2] = [65536, 1024];

/// A step as `plugins/optimizers/adamw` writes it for a clipped gradient, in the update graph of a training run: rate, decay and number of the
/// step are inputs, the gradient and both moments states. Reads weight, gradient and moments, writes all but the gradient.
fn adamw(c: &mut Case, packed: bool) -> Result<()> {
    let (beta1, beta2, eps) = (0.9, 0.95, 1e-8);
    let scalar = |c: &mut Case, name: &str, value: f32| -> Result<NodeId> {
        c.inputs.set(name, HostTensor::scalar(value));
        Ok(c.graph.input(name, Type::scalar(DType::F32))?)
    };
    let inputs = [("lr", 1e-3), ("step", 5.0), ("weight-decay", 0.1), ("clip", 0.5)];
    let inputs = inputs.map(|(name, value)| scalar(c, name, value));
    let [lr, t, decay, clip] = inputs;
    let (lr, t, decay, clip) = (lr?, t?, decay?, clip?);
    let len = SHAPE.iter().product();
    c.store.insert_f32("w", SHAPE.to_vec(), vec![1.0; len])?;
    let shape = SHAPE.iter().map(|&d| d as u64).collect();
    let param = c.graph.declare_param(ParamInfo { name: "w".into(), shape, trainable: true })?;
    let storage = c.graph.param(param)?;
    let w = c.graph.push(Read, &[storage])?;
    let (grad, _) = state(c, "grad", None)?;
    let ((m, at_m), (v, at_v)) = (state(c, "m", packed.then_some(Map::Signed))?, state(c, "v", packed.then_some(Map::Unsigned))?);
    c.store.write_state("grad", SHAPE.to_vec(), &vec![0.01; len])?;

    let g = &mut c.graph;
    let one = g.scalar(1.0, DType::F32)?;
    let grad = g.mul(grad, clip)?;
    let shrink = g.mul(lr, decay)?;
    let shrink = g.sub(one, shrink)?;
    let w = g.mul(w, shrink)?;
    let apart = g.sub(grad, m)?;
    let apart = g.scale(apart, 1.0 - beta1)?;
    let m = g.add(m, apart)?;
    let (old, square) = (g.scale(v, beta2)?, g.mul(grad, grad)?);
    let square = g.scale(square, 1.0 - beta2)?;
    let v = g.add(old, square)?;
    let mut correction = |beta: f64| -> Result<NodeId> {
        let beta = g.scalar(beta, DType::F32)?;
        let power = g.binary(BinaryOp::Pow, beta, t)?;
        Ok(g.sub(one, power)?)
    };
    let (first, second) = (correction(beta1)?, correction(beta2)?);
    let second = g.unary(UnaryOp::Sqrt, second)?;
    let root = g.unary(UnaryOp::Sqrt, v)?;
    let root = g.div(root, second)?;
    let eps = g.scalar(eps, DType::F32)?;
    let root = g.add(root, eps)?;
    let direction = g.div(m, root)?;
    let rate = g.div(lr, first)?;
    let change = g.mul(direction, rate)?;
    let w = g.sub(w, change)?;
    for (target, value) in [(Target::Param(param), w), (at_m, m), (at_v, v)] {
        g.write(target, value, false)?;
    }
    Ok(())
}

fn state(c: &mut Case, name: &str, map: Option<Map>) -> Result<(NodeId, Target)> {
    let ty = Type::f32(dims(&SHAPE));
    let id = match map {
        Some(map) => c.graph.declare_packed_state(name, ty, map)?,
        None => c.graph.declare_state(name, ty)?,
    };
    Ok((c.graph.read_state(id)?, Target::State(id)))
}

pub(super) fn cases() -> Vec<Build> {
    // Gradient read, weight and both moments read and written.
    let cases = [(false, "F32", 4 * 7), (true, "F32, moments in 8 bits", 4 * 3 + 4)];
    let build = |(packed, format, bytes): (bool, &'static str, usize)| -> Build {
        Box::new(move |device| {
            let amount = (bytes * SHAPE[0] * SHAPE[1]) as f64;
            let mut c = Case::new(device, "adamw", sizes_text(&SHAPE), format, amount, Bound::Copy);
            adamw(&mut c, packed)?;
            Ok(c)
        })
    };
    cases.map(build).into()
}
