// Package plugin keeps the volumes of volume plugins: programs of others that make
// and mount volumes, asked by Docker's volume plugin protocol
// (https://docs.docker.com/engine/extend/plugins_volume/).
//
// The plugin has the volume; here is noted that there is one, with its labels, who
// holds it, and for whom the plugin has mounted it, each under an id of its own. What
// is mounted is on disk before the plugin is asked, so that an engine which is
// killed and its successor tell the plugin the end of each mount once. A plugin that
// cannot be reached holds up only who asks for its volumes, and loses none of them.
package plugin
