//! Gemma 2 (Gemma Team 2024b, section 2): windowed and global layers in turn, capped scores and logits, norms before and after each
//! part of a block. Names are those of `Gemma2ForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, LayerType, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Gemma2 = "gemma2",
    }
}

config! {
    /// Gemma 2 decoders.
    pub struct Gemma2 {
        /// The family.
        model_type: Kind = Kind::Gemma2,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 256000,
        /// Width of the residual stream.
        hidden_size: u64 = 2304,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 9216,
        /// Number of blocks.
        num_hidden_layers: u32 = 26,
        /// Query heads.
        num_attention_heads: u64 = 8,
        /// Key and value heads.
        num_key_value_heads: u64 = 4,
        /// Size of a head.
        head_dim: u64 = 256,
        /// Activation of the feed-forward layer.
        hidden_activation: Activation = Activation::GeluTanh,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 8192,
        /// The output projection is the token table.
        tie_word_embeddings: bool = true,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Scores are divided by the root of this.
        query_pre_attn_scalar: f64 = 256.0,
        /// Cap of the scores.
        attn_logit_softcapping: Option<f64> = Some(50.0),
        /// Cap of the logits.
        final_logit_softcapping: Option<f64> = Some(30.0),
        /// The window of windowed layers, in tokens.
        sliding_window: Option<u32> = Some(4096),
        /// Which layers have a window, if not every other one from the first.
        layer_types: Option<Vec<LayerType>> = None,
        /// Biases in q, k, v and o.
        attention_bias: bool = false,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Gemma2 {
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

impl Architecture for Gemma2 {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms_unit_offset(d, self.rms_norm_eps);
        let scale = self.query_pre_attn_scalar.sqrt().recip();
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_activation);
        let stack = Stack {
            embedding_scale: Some((d as f64).sqrt()),
            softcap: self.final_logit_softcapping,
            ..Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings)
        };
        stack.run(net, |net, layer, x| {
            let sees = LayerType::of(self.layer_types.as_deref(), layer, layer % 2 == 0);
            let heads = Heads::new(layer, self.heads())
                .rope(&rope)
                .window(sees.window(self.sliding_window))
                .scores(scale, self.attn_logit_softcapping);
            let attended = net.norm("input_layernorm", x, norm);
            let attended = heads.self_attention(&net.at("self_attn"), &attended, d, [self.attention_bias; 2]);
            let x = x + net.norm("post_attention_layernorm", &attended, norm);
            let fed = mlp.apply(&net.at("mlp"), &net.norm("pre_feedforward_layernorm", &x, norm));
            x + net.norm("post_feedforward_layernorm", &fed, norm)
        });
        Ok(())
    }
}

blocks::model! { "gemma2": Gemma2 }
