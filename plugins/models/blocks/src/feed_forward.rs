//! Position-wise feed-forward layers.

use swift_sdk::{Value, config, scope};

use crate::{Linear, Net};

config! {
    /// An activation function, by the names of Hugging Face's `ACT2FN`.
    pub enum Activation {
        /// x · sigmoid(x).
        Silu = "silu",
        /// The same.
        Swish = "swish",
        /// By the error function.
        Gelu = "gelu",
        /// The same.
        GeluPython = "gelu_python",
        /// By its tanh approximation.
        GeluNew = "gelu_new",
        /// The same.
        GeluFast = "gelu_fast",
        /// The same.
        GeluTanh = "gelu_pytorch_tanh",
        /// max(x, 0).
        Relu = "relu",
    }
}

impl Activation {
    /// Its value at x.
    pub fn apply(self, x: &Value) -> Value {
        match self {
            Activation::Silu | Activation::Swish => x.silu(),
            Activation::Gelu | Activation::GeluPython => x.gelu(),
            Activation::GeluNew | Activation::GeluFast | Activation::GeluTanh => x.gelu_tanh(),
            Activation::Relu => x.relu(),
        }
    }
}

/// `down(act(gate(x)) · up(x))` (Shazeer 2020, "GLU Variants Improve Transformer").
#[derive(Clone, Copy, Debug)]
pub struct GatedFeedForward {
    /// Width of the residual stream.
    pub d: u64,
    /// Width between.
    pub d_ff: u64,
    /// Biases in all layers.
    pub bias: bool,
    /// Of the gate.
    pub activation: Activation,
}

impl GatedFeedForward {
    /// Without biases.
    pub fn new(d: u64, d_ff: u64, activation: Activation) -> GatedFeedForward {
        GatedFeedForward { d, d_ff, bias: false, activation }
    }

    /// With the layers `gate_proj`, `up_proj` and `down_proj`.
    pub fn apply(&self, net: &Net, x: &Value) -> Value {
        scope("mlp", || {
            let wide = Linear::new(self.d, self.d_ff).bias(self.bias);
            let gated = self.activation.apply(&net.linear("gate_proj", x, wide)) * net.linear("up_proj", x, wide);
            net.linear("down_proj", &gated, Linear::new(self.d_ff, self.d).bias(self.bias))
        })
    }

    /// With gate and up in one layer, gate first; `names` are that layer's and the last one's.
    pub fn apply_fused(&self, net: &Net, x: &Value, [gate_up, down]: [&str; 2]) -> Value {
        scope("mlp", || {
            let both = net.linear(gate_up, x, Linear::new(self.d, 2 * self.d_ff).bias(self.bias));
            let (gate, up) = (both.slice(-1, 0, self.d_ff), both.slice(-1, self.d_ff, self.d_ff));
            net.linear(down, &(self.activation.apply(&gate) * up), Linear::new(self.d_ff, self.d).bias(self.bias))
        })
    }
}

/// `down(act(up(x)))` with biases (Vaswani et al. 2017, section 3.3).
#[derive(Clone, Copy, Debug)]
pub struct FeedForward {
    /// The layer to `d_ff`.
    pub up: Linear,
    /// The layer back.
    pub down: Linear,
    /// Between them.
    pub activation: Activation,
}

impl FeedForward {
    /// With biases.
    pub fn new(d: u64, d_ff: u64, activation: Activation) -> FeedForward {
        FeedForward { up: Linear::new(d, d_ff).bias(true), down: Linear::new(d_ff, d).bias(true), activation }
    }

    /// With layers of these names.
    pub fn apply(&self, net: &Net, x: &Value, [up, down]: [&str; 2]) -> Value {
        scope("mlp", || net.linear(down, &self.activation.apply(&net.linear(up, x, self.up)), self.down))
    }
}
