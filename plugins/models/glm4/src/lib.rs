//! GLM-4 (Team GLM 2024; Du et al. 2022) under Hugging Face's names: half of each head turns, neighbours together; gate and up are one
//! layer; the 0414 releases (`glm4`) norm what each part of a block adds, the first ones (`glm`) do not. Names are those of
//! `Glm4ForCausalLM` and `GlmForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The releases of April 2025 and later.
        Glm4 = "glm4",
        /// The first ones.
        Glm = "glm",
    }
}

config! {
    /// GLM-4 decoders.
    pub struct Glm4 {
        /// The family.
        model_type: Kind = Kind::Glm4,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 151552,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 13696,
        /// Number of blocks.
        num_hidden_layers: u32 = 40,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads.
        num_key_value_heads: u64 = 2,
        /// Size of a head.
        head_dim: u64 = 128,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1.5625e-7,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 131072,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Biases in q, k and v.
        attention_bias: bool = true,
        /// Share of each head that turns, where rope_parameters does not say.
        partial_rotary_factor: f64 = 0.5,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Glm4 {
    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_key_value_heads, self.head_dim]
    }

    fn rope(&self) -> Result<Rope> {
        let source = RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            partial: Some(self.partial_rotary_factor),
            head_dim: self.head_dim,
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        };
        Ok(Rope::new(source)?.interleaved())
    }
}

impl Architecture for Glm4 {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        let normed = |net: &Net, name: &str, added: Value| match self.model_type {
            Kind::Glm4 => net.norm(name, &added, norm),
            Kind::Glm => added,
        };
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let attended = net.norm("input_layernorm", x, norm);
            let attended = heads.self_attention(&net.at("self_attn"), &attended, d, [self.attention_bias, false]);
            let x = x + normed(net, "post_self_attn_layernorm", attended);
            let fed = net.norm("post_attention_layernorm", &x, norm);
            let fed = mlp.apply_fused(&net.at("mlp"), &fed, ["gate_up_proj", "down_proj"]);
            x + normed(net, "post_mlp_layernorm", fed)
        });
        Ok(())
    }
}

blocks::model! { "glm4": Glm4 }
