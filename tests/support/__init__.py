"""What tests of several folders share: a served model, blocked engines, model cases, logs."""
