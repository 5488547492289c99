//! Gemma (Gemma Team 2024, section 2): multi-query attention, a gated feed-forward layer with GELU, scaled embeddings, norms with the
//! factor 1 + w. Names are those of `GemmaForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Gemma = "gemma",
    }
}

config! {
    /// Gemma decoders.
    pub struct Gemma {
        /// The family.
        model_type: Kind = Kind::Gemma,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 256000,
        /// Width of the residual stream.
        hidden_size: u64 = 3072,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 24576,
        /// Number of blocks.
        num_hidden_layers: u32 = 28,
        /// Query heads.
        num_attention_heads: u64 = 16,
        /// Key and value heads.
        num_key_value_heads: u64 = 16,
        /// Size of a head.
        head_dim: u64 = 256,
        /// Activation of the feed-forward layer, if not the tanh form of GELU. (The older `hidden_act` is not what was trained.)
        hidden_activation: Option<Activation> = None,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 8192,
        /// The output projection is the token table.
        tie_word_embeddings: bool = true,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        /// Biases in q, k, v and o.
        attention_bias: bool = false,
        ..
    }
}

impl Gemma {
    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_key_value_heads, self.head_dim]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            head_dim: self.head_dim,
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }
}

impl Architecture for Gemma {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms_unit_offset(d, self.rms_norm_eps);
        let activation = self.hidden_activation.unwrap_or(Activation::GeluTanh);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, activation);
        let stack = Stack {
            embedding_scale: Some((d as f64).sqrt()),
            ..Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings)
        };
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let attended = net.norm("input_layernorm", x, norm);
            let x = x + heads.self_attention(&net.at("self_attn"), &attended, d, [self.attention_bias; 2]);
            let fed = net.norm("post_attention_layernorm", &x, norm);
            x + mlp.apply(&net.at("mlp"), &fed)
        });
        Ok(())
    }
}

blocks::model! { "gemma": Gemma }
