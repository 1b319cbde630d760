"""What experiment trackers leave on disk, read without a server and without the tracker."""
