"""What every verb may use and nobody looks for: extras, console, environment, spelling help."""
