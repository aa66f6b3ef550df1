"""Where an uplift comes from, beyond the slices that every report has."""
