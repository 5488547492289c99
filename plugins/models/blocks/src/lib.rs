//! What model families are put together from. A family writes its forward pass once, over a [`Net`], in the terms of its paper; the
//! parameters that the pass names on the way are the model's plan, so that names, shapes and formulas cannot drift apart.
//!
//! ```ignore
//! impl Architecture for Mistral {
//!     fn forward(&self, net: &Net) -> Result<()> {
//!         let norm = Norm::rms(self.hidden_size, self.rms_norm_eps);
//!         let stack = Stack { ... };
//!         stack.run(net, |net, layer, x| {
//!             let x = x + self.attention(&net.at("self_attn"), layer, &net.norm("input_layernorm", x, norm));
//!             &x + self.mlp(&net.at("mlp"), &net.norm("post_attention_layernorm", &x, norm))
//!         });
//!         Ok(())
//!     }
//! }
//!
//! blocks::model! { "mistral": Mistral }
//! ```

mod attention;
mod decoder;
mod experts;
mod feed_forward;
mod layers;
mod net;
mod norm;
mod rope;

pub use attention::Heads;
pub use decoder::Stack;
pub use experts::{Choice, Experts, Groups, Router, Scores};
pub use feed_forward::{Activation, FeedForward, GatedFeedForward};
pub use layers::LayerType;
pub use net::{Linear, Net};
pub use norm::Norm;
pub use rope::{Rope, RopeParameters, RopeSource};

use swift_sdk::model::{ModelPlan, Session};
use swift_sdk::{Config, Result};

/// A model family, written once as a forward pass.
pub trait Architecture: Config {
    /// Deviation of fresh weights.
    fn initializer_range(&self) -> f32;

    /// From the input "ids" to [`Net::head`] or [`Net::output`].
    ///
    /// # Errors
    /// For a configuration that the family does not cover.
    fn forward(&self, net: &Net) -> Result<()>;
}

#[doc(hidden)]
pub fn plan<T: Architecture>(model: &T) -> Result<ModelPlan> {
    Net::planning(model.initializer_range(), |net| model.forward(net))
}

#[doc(hidden)]
pub fn trace<T: Architecture>(model: &T, session: &Session) -> Result<()> {
    Net::tracing(session, model.initializer_range(), |net| model.forward(net))
}

/// Exports an [`Architecture`] as a model plugin: the name users type, and the type.
#[macro_export]
macro_rules! model {
    ($id:literal : $ty:ty) => {
        impl ::swift_sdk::Model for $ty {
            fn plan(&self) -> ::swift_sdk::Result<::swift_sdk::model::ModelPlan> {
                $crate::plan(self)
            }

            fn trace(&self, session: &::swift_sdk::model::Session) -> ::swift_sdk::Result<()> {
                $crate::trace(self, session)
            }
        }

        ::swift_sdk::plugin! { model $id: $ty }
    };
}
