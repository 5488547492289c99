//! Inverted dropout (Srivastava et al. 2014) whose mask is a function of (key, stream, element), never of memory.

use super::{OpRule, arity, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::philox::word;
use crate::{Error, Float, Graph, Result, Type};

/// Inputs `x`, `key [2]` (s32: seed and step, bound by the host). Element `i` is dropped when
/// [`crate::philox::word`] `i` of (key, stream) is below `floor(rate·2³²)`, else divided by `1 - rate`. The gradient is the same op
/// on the gradient.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dropout {
    /// Share of elements dropped, in 0..1.
    pub rate: Float,
    /// Distinguishes the dropouts of one graph.
    pub stream: u32,
}

impl OpRule for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), &inputs[..1])?;
        if !(0.0..1.0).contains(&self.rate.0) {
            return Err(Error::attr(self.name(), "rate must be in 0..1"));
        }
        if inputs[1].shape.elements()?.as_fixed() != Some(2) || !inputs[1].dtype.is_int() {
            return Err(Error::shape(self.name(), "takes x and a whole-number key [2]", inputs));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let key = cx.whole(1);
        let key = [key[0] as u32, key[1] as u32];
        // Of 2³² words, this many mean "dropped".
        let dropped = (self.rate.0 * 4_294_967_296.0) as u64;
        let kept = |i: usize| u64::from(word(key, self.stream, i as u64)) >= dropped;
        let scale = |(i, v): (usize, &f64)| if kept(i) { v / (1.0 - self.rate.0) } else { 0.0 };
        cx.one(cx.input(0).data.iter().enumerate().map(scale).collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let d = cx.g.push(self.clone(), &[d, cx.input(1)])?;
        cx.add(0, d)
    }
}
