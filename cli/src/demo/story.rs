//! The story that the demo tells: how it begins, its chapters in order, and how it must end.

use std::time::Duration;

use anyhow::Context as _;
use hyper::Method;

use super::stage::Stage;
use super::{chapters, settings, talk};

/// Longest that the story may take; a story that hangs is a failed one.
pub(crate) const STORY_MAX: Duration = Duration::from_secs(180);

/// Sets the mesh up and plays every chapter.
///
/// # Errors
/// The first outcome that is not as it is told.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    raise_the_curtain(stage).await.context("the mesh did not come up")?;
    chapters::endpoint_dies::play(stage).await.context(chapters::endpoint_dies::TITLE)?;
    chapters::config_change::play(stage).await.context(chapters::config_change::TITLE)?;
    chapters::bad_document::play(stage).await.context(chapters::bad_document::TITLE)?;
    chapters::ads_hang::play(stage).await.context(chapters::ads_hang::TITLE)?;
    chapters::control_plane_dies::play(stage).await.context(chapters::control_plane_dies::TITLE)?;
    chapters::canary::play(stage).await.context(chapters::canary::TITLE)?;
    chapters::bad_version::play(stage).await.context(chapters::bad_version::TITLE)?;
    chapters::switch::play(stage).await.context(chapters::switch::TITLE)?;
    chapters::flags::play(stage).await.context(chapters::flags::TITLE)?;
    chapters::shards_grow::play(stage).await.context(chapters::shards_grow::TITLE)?;
    stage.mesh.whole().await.context("the shop is not whole at the end")?;
    if stage.mesh.layout.is_encrypted() {
        // Last, since from here on not everybody may call everybody.
        chapters::who_may::play(stage).await.context(chapters::who_may::TITLE)?;
    }
    Ok(())
}

/// Waits for the processes and tells the mesh what it should be.
async fn raise_the_curtain(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.mesh.control_plane_ready().await?;
    stage.teller.say("the control plane is up; it is told the mesh document over REST (PUT /v1/mesh)");
    let answer = stage.write(Method::PUT, "/v1/mesh", &settings::document()).await?;
    anyhow::ensure!(answer.status.is_success(), "PUT /v1/mesh: {}", talk::brief(&answer));
    stage.mesh.whole().await?;
    stage.teller.say("every proxy is ready, and every app is reached from every machine");
    Ok(())
}
