"""From scratch, without torch's autograd: what the lessons build by hand."""
