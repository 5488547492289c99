//! GPT-2 (Radford et al. 2019, section 2.3): the decoder of Vaswani et al. 2017 with norms before each part and learned positions. Names
//! are those of `GPT2LMHeadModel`, whose `Conv1D` weights lie as `[in, out]`.

use blocks::{Activation, Architecture, FeedForward, Heads, Linear, Net, Norm, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Gpt2 = "gpt2",
    }
}

config! {
    /// GPT-2 decoders.
    pub struct Gpt2 {
        /// The family.
        model_type: Kind = Kind::Gpt2,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 50257,
        /// Width of the residual stream.
        n_embd: u64 = 768,
        /// Width of the feed-forward layer, if not 4 n_embd.
        n_inner: Option<u64> = None,
        /// Number of blocks.
        n_layer: u32 = 12,
        /// Heads.
        n_head: u64 = 12,
        /// Longest sequence.
        n_positions: u64 = 1024,
        /// Activation of the feed-forward layer.
        activation_function: Activation = Activation::GeluNew,
        /// Added to the variance in norms.
        layer_norm_epsilon: f64 = 1e-5,
        /// Divide scores by the root of the head's size.
        scale_attn_weights: bool = true,
        /// Divide scores by the layer's number, too.
        scale_attn_by_inverse_layer_idx: bool = false,
        /// The output projection is the token table.
        tie_word_embeddings: bool = true,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        ..
    }
}

impl Gpt2 {
    fn heads(&self) -> [u64; 3] {
        [self.n_head, self.n_head, self.n_embd / self.n_head.max(1)]
    }

    fn score_scale(&self, layer: u32) -> f64 {
        let root = if self.scale_attn_weights { (self.heads()[2] as f64).sqrt() } else { 1.0 };
        let depth = if self.scale_attn_by_inverse_layer_idx { f64::from(layer + 1) } else { 1.0 };
        1.0 / (root * depth)
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let d = self.n_embd;
        scope("attn", || {
            let joined = net.linear("c_attn", x, Linear::new(d, 3 * d).bias(true).stored_transposed());
            let [q, k, v] = heads.split(&joined);
            net.linear("c_proj", &heads.attend(net, &q, &k, &v), Linear::new(d, d).bias(true).stored_transposed())
        })
    }
}

impl Architecture for Gpt2 {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let d = self.n_embd;
        let norm = Norm::layer(d, self.layer_norm_epsilon);
        let FeedForward { up, down, activation } = FeedForward::new(d, self.n_inner.unwrap_or(4 * d), self.activation_function);
        let mlp = FeedForward { up: up.stored_transposed(), down: down.stored_transposed(), activation };
        let stack = Stack {
            embedding: "transformer.wte",
            blocks: "transformer.h",
            norm: ("transformer.ln_f", norm),
            ..Stack::new(self.vocab_size, d, self.n_layer, norm)
        }
        .tied(self.tie_word_embeddings);
        let tokens = net.embed("transformer.wte", &net.input("ids"), self.vocab_size, d);
        let positions = net.embed("transformer.wpe", &net.input("positions"), self.n_positions, d);
        stack.run_on(net, tokens + positions, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).scores(self.score_scale(layer), None);
            let x = x + self.attention(&net.at("attn"), &heads, &net.norm("ln_1", x, norm));
            let fed = mlp.apply(&net.at("mlp"), &net.norm("ln_2", &x, norm), ["c_fc", "c_proj"]);
            x + fed
        });
        Ok(())
    }
}

blocks::model! { "gpt2": Gpt2 }
